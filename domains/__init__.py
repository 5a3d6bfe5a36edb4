"""Scientific domains: each states its bi-level problems in the core's nouns. Import as ``sciopt.domains``."""

if __name__ == "domains":
    raise ImportError(
        "domains: expected to be imported as `sciopt.domains`, got a bare `import domains`. "
        "Write `import sciopt.domains.<name>`, or take the repository root's `domains/` off sys.path."
    )
