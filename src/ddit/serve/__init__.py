"""Serving a model: jobs in batches (`engine`), the HTTP API over them (`api`), and replicas of it (`ray_app`)."""
