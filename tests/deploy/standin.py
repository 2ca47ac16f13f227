"""What stands for our own processes in tests of the launcher: needs nothing but Python.

standin.py gateway               answers /healthz, lists an agent
standin.py worker                starts a process in a session of its own, says it is ready, waits
standin.py worker FILE           the same, but it is ready as soon as the file exists
standin.py embed                 waits
standin.py migrate               adds a row to the table `runs`, prints how many there are
standin.py crash MESSAGE         prints a message and ends with 1
standin.py crash MESSAGE FILE    says it is ready, and does the same as soon as the file exists
"""

import http.server
import os
import signal
import subprocess
import sys
import time


class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path in {"/healthz", "/v1/agents"} else 404)
        self.end_headers()
        self.wfile.write(b'{"agents": [{"name": "story"}]}')


def migrate() -> None:
    import psycopg  # noqa: PLC0415 - the other stand-ins run without packages, to start fast

    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS runs (n serial)")
        connection.execute("INSERT INTO runs DEFAULT VALUES")
        print("runs:", connection.execute("SELECT count(*) FROM runs").fetchone())


match sys.argv[1:]:
    case ["gateway"]:
        address = (os.environ["FIRESIDE_HOST"], int(os.environ["PORT"]))
        http.server.ThreadingHTTPServer(address, Health).serve_forever()
    case ["worker", *files]:
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        while not all(os.path.exists(file) for file in files):
            time.sleep(0.01)
        print("[INFO] celery@here ready.", flush=True)
        signal.pause()
    case ["embed"]:
        signal.pause()
    case ["migrate"]:
        migrate()
    case ["crash", message]:
        sys.exit(message)
    case ["crash", message, file]:
        print("[INFO] celery@here ready.", flush=True)
        while not os.path.exists(file):
            time.sleep(0.01)
        sys.exit(message)
