"""Other libraries: conversion of weights with numpy alone, and layers for flax (nnx and linen)."""
