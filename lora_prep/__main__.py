"""`python -m lora_prep` is `lora-prep`."""

from lora_prep.cli import main

if __name__ == "__main__":
    main()
