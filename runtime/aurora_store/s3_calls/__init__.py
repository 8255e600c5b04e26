"""What a call of S3 is given, and what its exceptions mean."""
