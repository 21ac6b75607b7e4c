import { once } from "node:events";
import { mkdtempDisposable } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { json } from "node:stream/consumers";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import { startWorker } from "../../scripts/worker.ts";
import type { InvocationReport } from "../../src/index.ts";
import { bundleFunction, bundleWorker } from "../support/bundle.ts";
import { monitoring } from "../support/monitoring.ts";
import { startSystem } from "../support/system.ts";
import type { FunctionProperties } from "./lambda-package.ts";
import { type Invocation, type LambdaFunction, startFunction } from "./lambda-runtime.ts";
import { app } from "./workers/app.ts";

it("a Worker goes on by its queue with what one cron trigger left, until nothing is", async () => {
  const monitor = await monitoring();
  await using system = await startSystem(app, monitor);
  const reports: (InvocationReport & { event: string })[] = [];
  await using worker = await startWorker({
    script: await bundleWorker("continuing.ts"),
    bindings: { NATS_URL: system.server.url },
    queues: { NEXT: "next" },
    onLog: (line) => reports.push(JSON.parse(line)),
  });
  await Promise.all(Array.from({ length: 600 }, (_, n) => system.publish("jobs.do", { n, ms: 100 })));
  expect(await worker.fire("* * * * *")).toMatchObject({ outcome: "ok" });
  let most = 0;
  let idleFor = 0;
  for (let left = 1; left > 0; left = (await system.jsm.streams.info("JOBS")).state.messages) {
    const connected = (await monitor.connections()).length;
    most = Math.max(most, connected);
    idleFor = connected === 0 ? idleFor + 1 : 0;
    if (idleFor > 100) await worker.fire("* * * * *"); // the next tick, where one was too slow to end in time
    await sleep(25);
  }
  expect(most).toBeLessThanOrEqual(4); // two places, and two for triggers
  const invocations = () => reports.filter(({ event }) => event === "invocation");
  await expect.poll(() => invocations().at(-1)?.consumers[0]).toMatchObject({ ended: "drained", more: false });
  expect(invocations().length).toBeGreaterThanOrEqual(3);
  expect(invocations()[0]).toMatchObject({ consumers: [{ more: true }, { more: false }], continued: { asked: 2 } });
  await expect.poll(() => monitor.connections()).toEqual([]);
});

it("a Lambda function goes on by starting itself with what one schedule left, until nothing is", async () => {
  const monitor = await monitoring();
  await using system = await startSystem(app, monitor);
  await using folder = await mkdtempDisposable(join(tmpdir(), "sortie-function-"));
  await bundleFunction("continuing.ts", folder.path);
  await using lambda = await startLambda(folder.path, { NATS_URL: system.server.url });
  await Promise.all(Array.from({ length: 275 }, (_, n) => system.publish("jobs.do", { n, ms: 400 })));
  let most = 0;
  for (let left = 1; left > 0; left = (await system.jsm.streams.info("JOBS")).state.messages) {
    if (lambda.running === 0) lambda.start({ source: "aws.scheduler" }); // once, but where one was too slow to end in time
    most = Math.max(most, (await monitor.connections()).length);
    await sleep(25);
  }
  expect(most).toBeLessThanOrEqual(4); // two places, and two for triggers
  const reports = (await lambda.ended()).flatMap(({ response }) => (response as InvocationReport | undefined) ?? []);
  expect(reports[0]).toMatchObject({ consumers: [{ more: true }, { more: false }], continued: { asked: 2 } });
  expect(reports.flatMap(({ continued }) => continued?.error ?? [])).toEqual([]);
  const places = lambda.asked.map((event) => event as { id: string; until: number; depth: number });
  expect(places.slice(0, 2).map(({ depth }) => depth)).toEqual([1, 1]);
  expect(new Set(places.map(({ id }) => id)).size).toBe(places.length);
  await expect.poll(() => monitor.connections()).toEqual([]);
}, 90_000); // what is cut off on a busy machine comes again after its ack-wait

/** Stands for Lambda: its Invoke API, and as many instances of one function as are asked for at the same time. */
async function startLambda(taskRoot: string, settings: Record<string, string>) {
  const api = createServer(async (request, response) => {
    const event: unknown = await json(request);
    asked.push(event);
    start(event);
    response.writeHead(202).end();
  }).listen(0, "127.0.0.1");
  await once(api, "listening");
  const asked: unknown[] = [];
  const all: LambdaFunction[] = [];
  const idle: LambdaFunction[] = [];
  const started: Promise<Invocation>[] = [];
  let running = 0;
  const properties: FunctionProperties = {
    FunctionName: "continuing-pull",
    Handler: "continuing.pull",
    Runtime: "nodejs24.x",
    Architectures: ["arm64"],
    MemorySize: 256,
    Timeout: 4,
    Environment: { Variables: settings },
    Code: { S3Key: "" },
  };
  const login = {
    AWS_ENDPOINT_URL_LAMBDA: `http://127.0.0.1:${(api.address() as AddressInfo).port}`,
    AWS_ACCESS_KEY_ID: "AKIDEXAMPLE",
    AWS_SECRET_ACCESS_KEY: "secret",
  };

  async function run(event: unknown): Promise<Invocation> {
    const instance = idle.pop() ?? (await startFunction(taskRoot, properties, login));
    if (!all.includes(instance)) all.push(instance);
    const invocation = await instance.invoke(event);
    idle.push(instance);
    return invocation;
  }

  function start(event: unknown): void {
    running += 1;
    started.push(
      run(event).finally(() => {
        running -= 1;
      }),
    );
  }

  return {
    asked,
    start,
    get running() {
      return running;
    },
    /** All invocations, in the order in which they were asked for, when none is left. */
    async ended(): Promise<Invocation[]> {
      for (let known = 0; known < started.length; ) {
        known = started.length;
        await Promise.all(started);
      }
      return Promise.all(started);
    },
    async [Symbol.asyncDispose]() {
      for (const instance of all) await instance[Symbol.asyncDispose]();
      api.close();
    },
  };
}
