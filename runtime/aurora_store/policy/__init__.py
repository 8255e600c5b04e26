"""What an administrator decides about stores: who may use which, and where connections may lead to."""
