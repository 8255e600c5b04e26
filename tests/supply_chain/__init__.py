"""What the images install: bills of materials, licences and known vulnerabilities."""
