"""Runtime overlay for SGLang on AMD ROCm: versioned patches, applied by proof, in every process of the server.

Importing this package is free: it pulls in nothing but itself. The parts are imported where they are needed:
`overlay.plan` decides, `overlay.install` acts, `overlay.status` reports, `overlay.boot` starts it all in a process.

What a third-party pack may rely on: the types of `overlay.model`; `Gate`, `boolean` and `OneOf` of `overlay.gates`;
`overlay.guard.guard`; the classes of `overlay.errors`; `overlay.say.say`; and for its tests `overlay.runtime.current`
and `overlay.registry.load`. The rest may change at any time (docs/packs.md).
"""

__version__ = "0.1.0"
