"""Where the model meets protobuf and gRPC, for both ends of the wire.

Only ``errors`` knows gRPC; the other modules know protobuf alone.
"""
