"""The REST interfaces of Agent Lightning 0.3 and 0.2 and of its legacy server, so that its own clients work unchanged.

Each operation makes calls of the gRPC service in process: roles, limits and rules are those of the service.
"""
