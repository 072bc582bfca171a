"""The metadata is in pyproject.toml, but for the license, which old and new setuptools write differently."""

from setuptools import setup

setup(license="MIT")
