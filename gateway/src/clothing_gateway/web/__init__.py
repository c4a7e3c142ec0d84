"""HTTP: the server, the routes, clients' keys and rates, the page, the admin port."""
