"""Tests of the chart that need no Helm."""
