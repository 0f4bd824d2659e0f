"""Committed data: upstream's schemas, extracted by `extract`; read by `machinery.schema` and nobody else."""

from pathlib import Path

SCHEMAS = Path(__file__).parent / "schemas.gz"
DESCRIPTIONS = Path(__file__).parent / "descriptions.gz"
