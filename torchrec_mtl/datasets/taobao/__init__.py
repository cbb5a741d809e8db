"""TaoBao's display ads, from the raw files to a prepared data set."""
