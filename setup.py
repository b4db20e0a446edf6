"""Builds the compiled module through CMake; everything else stands in pyproject.toml."""

from setuptools import setup

setup(cmake_source_dir=".")
