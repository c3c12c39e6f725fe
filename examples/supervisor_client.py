#!/usr/bin/env python3
"""Runs a command in a microVM through the supervisor protocol (docs/protocol.md), without microagent's
library: supervisor_client.py SUPERVISOR LAUNCH_SPEC.json COMMAND [ARG]...  Ends with the command's code."""
import json, socket, struct, subprocess, sys

HEADER, STDOUT, STDERR, EXIT, CREDIT, REQUEST, RESPONSE, EVENT = 1, 4, 5, 8, 9, 16, 17, 18

def answer(response):
    """The answer in a response, or the end of this program with the supervisor's reason and remedy."""
    if not response["ok"]:
        error = response["error"]
        sys.exit(f"{error['kind']}: {error['message']}. {error.get('remedy') or ''}")
    return response["answer"]

class Connection:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)

    def receive(self, count):
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                sys.exit("the supervisor closed the connection")
            data += part
        return data

    def frame(self):
        """The next frame: a length that counts the kind byte, the kind byte, the payload."""
        length, kind = struct.unpack(">IB", self.receive(5))
        return kind, self.receive(length - 1)

    def ask(self, command, **arguments):
        request = {"protocol": 1, "command": command, **({"arguments": arguments} if arguments else {})}
        payload = json.dumps(request).encode()
        self.socket.sendall(struct.pack(">IB", len(payload) + 1, REQUEST) + payload)
        kind, payload = self.frame()
        assert kind == RESPONSE, kind
        return answer(json.loads(payload))

supervisor, spec, *argv = sys.argv[1:]
launch = {"protocol": 1, "command": "launch", "arguments": json.load(open(spec))}
launched = subprocess.run([supervisor], input=json.dumps(launch).encode(), stdout=subprocess.PIPE)
path = answer(json.loads(launched.stdout))["value"]["socket"]

events, session = Connection(path), Connection(path)
events.ask("subscribe", owner=True)  # the machine ends when this program does
started = session.ask("exec", role="workload", argv=argv, env=["PATH=/usr/bin:/bin"])
if started["type"] != "started":
    sys.exit(started["value"]["message"])
while (frame := session.frame())[0] != EXIT:
    stream = {STDOUT: sys.stdout, STDERR: sys.stderr}[frame[0]].buffer
    stream.write(frame[1])
    stream.flush()
status = json.loads(frame[1])
while (event := json.loads(events.frame()[1]))["event"] != "ended":
    pass
print(f"the machine is {event['state']}: {event['cause']}", file=sys.stderr)
sys.exit(status["code"] if status["status"] == "exited" else 128 + status["signal"])
