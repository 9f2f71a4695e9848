"""A program that plays over the network, as a robot or a policy would: python docs/examples/remote_player.py ADDRESS.

The address is the one that `play` prints, with its token if it has one. It holds the first control for a while, and
saves the last frame that it was shown.
"""

from __future__ import annotations

import argparse
import json
from io import BytesIO
from urllib.parse import parse_qs, urlsplit

from PIL import Image
from websockets.sync.client import connect


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--output", default="last_frame.png")
    options = parser.parse_args()
    place = urlsplit(options.address)
    token = parse_qs(place.query).get("token", [""])[0]
    with connect(f"ws://{place.netloc}/live", additional_headers={"Authorization": f"Bearer {token}"}) as server:
        shown = 0
        while shown < options.blocks:
            message = server.recv()
            if isinstance(message, str):
                notice = json.loads(message)
                if notice["type"] == "hello":
                    print("controls:", [control["label"] for control in notice["controls"]])
                    server.send(json.dumps({"type": "hold", "held": [[0, 1.0]], "change": 1}))
                continue
            end_of_header = 4 + int.from_bytes(message[:4], "big")
            header, picture = json.loads(message[4:end_of_header]), message[end_of_header:]
            # Without this word the server sends nothing more: it drops what nobody looks at.
            server.send(json.dumps({"type": "shown", "serial": header["serial"], "key_ms": None}))
            shown = header["number"]
    height, width = header["size"]
    strip = Image.open(BytesIO(picture))
    strip.crop((0, (header["frames"] - 1) * height, width, header["frames"] * height)).save(options.output)
    print(f"block {shown}, {header['distance']} px from the simulator, the last frame is in {options.output}")


if __name__ == "__main__":
    main()
