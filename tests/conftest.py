from hypothesis import settings

settings.register_profile("default", deadline=None)  # the first call of a torch function takes seconds
settings.load_profile("default")
