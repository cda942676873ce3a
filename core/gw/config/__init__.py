"""The configuration: what it may say (`model`, `rules`), how it is read (`document`, `load`), what is wrong with it (`errors`)."""
