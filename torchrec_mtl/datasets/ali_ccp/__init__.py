"""Ali-CCP, Alibaba's clicks and conversions, from the raw files to a prepared data set."""
