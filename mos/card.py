"""What a saved adapter's model card says of loading it: PEFT does not know the method before the import."""

from pathlib import Path

HEADING = "## How to load this adapter"
SECTION = f"""{HEADING}

The method {{method}} is not part of PEFT but of the package `mos-peft`. Import that first, or loading fails with
`KeyError: '{{method}}'`.

```python
import mos  # registers the method with PEFT
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "path or name of this adapter")
```
"""
FRONT = """---
library_name: peft
---
"""


def explain_loading(folder: Path, method: str) -> None:
    """Add the section to the README.md in `folder`, which PEFT has written before; a second time changes nothing."""
    path = folder / "README.md"
    card = path.read_text(encoding="utf-8") if path.exists() else FRONT
    if HEADING in card:
        return
    new = path.with_suffix(".md.new")
    new.write_text(f"{card.rstrip()}\n\n{SECTION.format(method=method)}", encoding="utf-8")
    new.replace(path)
