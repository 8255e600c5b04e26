"""The worker: carries out the controller's decisions inside stock SGLang."""
