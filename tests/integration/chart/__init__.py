"""The Helm chart: its rendering, and the rights that it gives to the operator and to people."""
