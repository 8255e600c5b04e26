"""The store's records, their deletion and the check of a store, on a real S3 server."""
