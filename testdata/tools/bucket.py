"""An S3 server on loopback for the tests: PyPI's moto, which checks signatures and rights. `bucket.py install` puts it into the
cache folder of the tests (lab.py says where that is); `bucket.py serve [PORT]` says in one line of JSON how
it is reached, and runs until it is ended; without a port, until its standard input ends."""

import json
import os
import signal
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lab

VERSION = "5.2.5"
BUCKET = "caches"


def home():
    return os.path.join(lab.cache_dir(), "moto-1")


def install():
    marker = os.path.join(home(), "complete")
    if os.path.exists(marker):
        return
    print("installing moto, an S3 server, for the tests", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", home()], check=True)
    subprocess.run([os.path.join(home(), "bin/pip"), "install", "-q", f"moto[s3]=={VERSION}", "flask", "flask-cors"], check=True)
    open(marker, "w").close()


def serve(port=None):
    inside = os.path.join(home(), "bin/python")
    if os.path.realpath(sys.prefix) != os.path.realpath(home()):
        os.execv(inside, [inside, os.path.abspath(__file__), "serve"] + ([port] if port else []))
    setup_actions = 5
    os.environ["INITIAL_NO_AUTH_ACTION_COUNT"] = str(setup_actions)
    import logging

    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=int(port or 0), verbose=False)
    server.start()
    number = server._server.server_port
    there = {"endpoint_url": f"http://127.0.0.1:{number}", "region_name": "us-east-1", "aws_access_key_id": "first",
             "aws_secret_access_key": "first"}
    iam, s3 = boto3.client("iam", **there), boto3.client("s3", **there)
    iam.create_user(UserName="kiln")
    actions = ["s3:GetObject", "s3:PutObject", "s3:ListBucket", "s3:AbortMultipartUpload"]
    rights = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}]}
    iam.put_user_policy(UserName="kiln", PolicyName="caches", PolicyDocument=json.dumps(rights))
    key = iam.create_access_key(UserName="kiln")["AccessKey"]
    s3.create_bucket(Bucket=BUCKET)
    # Uses up the last action that needs no rights, with one that anybody who can't sign is refused afterwards.
    s3.list_buckets()
    lab.say(endpoint=f"http://127.0.0.1:{number}", bucket=BUCKET, key=key["AccessKeyId"], secret=key["SecretAccessKey"])
    if port:
        signal.pause()
    sys.stdin.read()
    # Threads of the server may still wait for requests.
    os._exit(0)


if __name__ == "__main__":
    {"install": install, "serve": serve}[sys.argv[1]](*sys.argv[2:])
