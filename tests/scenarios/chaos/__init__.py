"""Clusters of real processes under faults that a seed draws, while workers read and write and check every byte that they see."""
