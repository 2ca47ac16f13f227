"""The README says what the code does."""

from pathlib import Path

from pydantic import SecretStr

from shared.settings import Settings

ROOT = Path(__file__).parents[1]


def settings_rows() -> list[str]:
    """The table of settings as the README must have it."""
    rows = []
    for name, field in Settings.model_fields.items():
        variable = name.upper() if field.validation_alias else f"FIRESIDE_{name.upper()}"
        default = field.default
        if isinstance(default, SecretStr):
            default = default.get_secret_value()
        if isinstance(default, list):
            default = ", ".join(default)
        shown = f"`{default}`" if default not in {None, ""} else ""
        rows.append(f"| `{variable}` | {shown} | {field.description} |")
    return rows


def test_the_table_of_settings_is_that_of_the_settings_class() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    start = lines.index("| variable | default | meaning |") + 2
    table = lines[start : lines.index("", start)]

    assert table == settings_rows()
