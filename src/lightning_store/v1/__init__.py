"""Generated from proto/lightning_store/v1 by `make proto`; not to be edited."""
