"""What several tests share: the host inside the test process, tiny models, a live server, pictures."""
