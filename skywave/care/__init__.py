"""Looking after a host: what is wrong with it, its certificates, and what to send along with a bug report."""
