"""Images that nobody uses any more are removed; all others stay."""

import subprocess
import time

from device import module, wait_until

ENDLESS = {"MessageCount": "-1", "MessageDelay": "0.5"}


def images_at(moment):
    """Removal at this time of day, of what has not been used for a second."""
    return {"images": {"unused_for": "1s", "at": time.strftime("%H:%M", time.gmtime(moment))}}


def test_old_images_go_and_those_in_use_foreign_and_good_ones_stay(make_device, site, sensor, python_image, node_image):
    newer = site.image("holdfast-simulated-sensor", "2")
    # The next full minute but one: until then everything below has happened.
    due = (int(time.time()) // 60 + 2) * 60
    due += 60 if due - time.time() < 75 else 0
    device = make_device(images_at(due))
    machine = device.machine

    def has(image):
        done = subprocess.run(["docker", "image", "inspect", image], env=machine._docker_env(), capture_output=True)
        return done.returncode == 0

    machine.pull(python_image)
    device.start()
    idle = {"options": {"Cmd": ["sh", "-c", "exec sleep 100000"], "StopTimeout": 1}}
    device.wait_status(200, device.deploy({
        "sensor": module(sensor, env=ENDLESS),
        "node": module(node_image, status="stopped"),
        "brought": module(python_image, imagePullPolicy="never", **idle),
    }), 120)
    # Somebody else has taken a liking to an image that we pulled.
    machine.docker("create", "--network", "none", "--name", "stranger", node_image, "true")
    good = device.deploy({"sensor": module(newer, env=ENDLESS)})
    device.wait_status(200, good)
    wait_until(lambda: "kept as the last good one" in device.log_text().split("sensor\" action=\"update\"")[-1]
               and f"version={good}" in device.log_text(), "the deployment to be good", 60)
    # In force when images are removed: one that is not well, so that the good one is where the way back leads.
    broken = module(python_image, imagePullPolicy="never", options={"Cmd": ["sh", "-c", "exit 3"]})
    device.deploy({"sensor": broken})
    device.wait_module("sensor", "backoff", 60)
    assert time.time() < due, "this took so long that the removal was before it"
    assert all(map(has, (sensor, newer, python_image, node_image)))
    wait_until(lambda: not has(sensor), f"the old image to be removed; log:\n{device.log_tail()}", due - time.time() + 20)
    time.sleep(1)
    assert has(newer), "the image of the last good deployment"
    assert has(python_image), "an image that we did not pull"
    assert has(node_image), "an image that a foreign container uses"
    assert "stranger" in machine.containers()
    machine.docker("rm", "--force", "stranger")
    # What was removed comes back when it is wanted.
    device.wait_status(200, device.deploy({"sensor": module(sensor, env=ENDLESS)}), 60)
    assert has(sensor)
