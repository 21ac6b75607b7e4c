import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, expect, it } from "vitest";
import * as z from "zod";
import { createApp, defineConsumer, defineStream } from "../../src/index.ts";
import { connect } from "../../src/nats/connection.ts";
import { startStretch } from "../support/stretch.ts";
import { type System, startSystem } from "../support/system.ts";

const delayMs = 100; // each way: what leaves together takes less, also where the machine is busy
const jobs = defineStream("JOBS", { subjects: { "jobs.a": z.object({ n: z.number() }) }, retention: "workqueue" });
const dead = defineStream("DEAD", { captures: ["dead.>"] });

let system: System;
afterEach(() => system[Symbol.asyncDispose]());

it("an invocation takes no more flights over the network than it has to", async () => {
  let flights = () => 0;
  let [first, last] = [0, 0];
  const worker = defineConsumer(jobs, "worker", { deadLetter: "dead.jobs" });
  const app = createApp({ streams: [jobs, dead] }).on(worker, () => {
    last = flights();
    first ||= last;
  });
  system = await startSystem(app);
  await using stretch = await startStretch(system.server.url, delayMs);
  flights = () => stretch.flights;
  for (let n = 0; n < 10; n++) await system.publish("jobs.a", { n });
  const through = { connect: (ms: number) => connect({ url: stretch.url }, ms) };

  expect((await system.invoke(through)).consumers[0]).toMatchObject({ acked: 10, ended: "drained" });
  expect({ first, end: flights() - last }).toEqual({ first: 2, end: 1 });

  const connection = await through.connect(5_000);
  const warm = { connect: async () => connection, disconnect() {} };
  await connection.confirmed;
  await sleep(3 * delayMs); // what was sent before has arrived
  const before = flights();
  expect((await system.invoke(warm)).consumers[0]).toMatchObject({ pulled: 0, ended: "drained" });
  expect(flights() - before).toBe(1);
  await connection.close();
});
