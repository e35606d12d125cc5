"""What the suites share: real servers, stands of whole systems, devices, vaults. Each test says what it needs of them."""
