"""The Complete Journey: a funnel of grocery shopping."""
