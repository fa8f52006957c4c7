"""`prefect flow-run execute` in the containers of this stack."""
