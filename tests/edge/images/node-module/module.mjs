// A module on the unmodified Azure IoT device SDK for Node.js, started from the edge environment. TRANSPORT is Mqtt or Amqp.

import device from "azure-iot-device";
import amqp from "azure-iot-device-amqp";
import mqtt from "azure-iot-device-mqtt";

const { Message, ModuleClient } = device;
const transport = process.env.TRANSPORT === "Amqp" ? amqp.Amqp : mqtt.Mqtt;
const say = (event, rest = {}) => console.log(JSON.stringify({ event, ...rest }));

async function main() {
  const client = await ModuleClient.fromEnvironment(transport);
  client.on("error", (error) => say("error", { error: String(error) }));
  await client.open();

  client.on("inputMessage", (input, message) => {
    const alert = new Message(JSON.stringify({ alert: JSON.parse(message.getBytes().toString()), by: "node" }));
    alert.contentType = "application/json";
    alert.contentEncoding = "utf-8";
    alert.properties.add("source", input);
    for (let index = 0; index < message.properties.count(); index += 1) {
      const { key, value } = message.properties.getItem(index);
      alert.properties.add(key, value);
    }
    client.sendOutputEvent("alerts", alert, (error) => {
      if (error) {
        say("error", { error: String(error) });
        return;
      }
      client.complete(message, () => say("forwarded", { input }));
    });
  });

  client.onMethod("echo", (request, response) => {
    say("method", { name: "echo", payload: request.payload });
    response.send(200, request.payload, () => {});
  });
  client.onMethod("call", (request, response) => {
    const { device: deviceId, module: moduleId, method, payload } = request.payload;
    const params = { methodName: method, payload, responseTimeoutInSeconds: 10, connectTimeoutInSeconds: 5 };
    client.invokeMethod(deviceId, moduleId, params, (error, result) => {
      if (error) response.send(500, { message: String(error) }, () => {});
      else response.send(200, result, () => {});
    });
  });

  const twin = await client.getTwin();
  const report = (patch) =>
    new Promise((done, fail) => {
      twin.properties.reported.update(patch, (error) => (error ? fail(error) : done()));
    });
  await report({ started: Date.now() / 1000 });
  twin.on("properties.desired", (patch) => {
    const { $version, ...rest } = patch;
    if (Object.keys(rest).length > 0) report(rest).then(() => say("reported", { patch: rest }));
  });
  say("ready");
  process.on("SIGTERM", () => client.close(() => process.exit(0)));
}

main().catch((error) => {
  say("failed", { error: String(error) });
  process.exit(1);
});
