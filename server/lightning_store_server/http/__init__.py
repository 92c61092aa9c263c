"""The HTTP side of the server: one Starlette application on uvicorn's protocol, in the server's event loop."""
