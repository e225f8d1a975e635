"""Runtime overlay for SGLang on AMD ROCm: versioned patches, applied by proof, in every process of the server.

Importing this package is free: it pulls in nothing but itself. The parts are imported where they are needed:
`overlay.plan` decides, `overlay.install` acts, `overlay.status` reports, `overlay.boot` starts it all in a process.
"""

__version__ = "0.1.0"
