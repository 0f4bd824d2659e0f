"""Committed data: upstream's schemas, extracted by `extract` and read by `machinery.schema`; and the default roles,
read by `machinery.rbacdefaults`."""

from pathlib import Path

SCHEMAS = Path(__file__).parent / "schemas.gz"
DESCRIPTIONS = Path(__file__).parent / "descriptions.gz"
ROLES = Path(__file__).parent / "rbac-defaults.txt"
