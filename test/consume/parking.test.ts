import { setTimeout as sleep } from "node:timers/promises";
import { DiscardPolicy } from "@nats-io/jetstream";
import { describe, expect, it } from "vitest";
import * as z from "zod";
import { createApp, defineConsumer, defineStream, list } from "../../src/index.ts";
import { altered, losing } from "../support/connections.ts";
import { type System, startSystem } from "../support/system.ts";

// the memory for ids is short, so that a second dead letter would show
const duplicateWindow = "3s";
const jobs = defineStream("JOBS", { subjects: { "jobs.a": z.number() }, retention: "workqueue", duplicateWindow });
const dead = defineStream("DEAD", { captures: ["dead.>"], duplicateWindow });
const backoff = list(["5s", 10]); // the first retry is just far enough off to be parked
const dueMs = 5_200;

/** A message whose first attempt failed: its copy is parked, and the acknowledgement of itself was lost. */
async function startParked(succeedsAt: number, { ackWaitMs = 1_000 } = {}) {
  const worker = defineConsumer(jobs, "worker", {
    deadLetter: "dead.jobs",
    ackWait: Math.min(ackWaitMs, 2_900),
    maxAckPending: 100,
    retry: { attempts: 3, backoff },
  });
  const seen: number[] = [];
  const app = createApp({ streams: [jobs, dead] }).on(worker, ({ attempt }) => {
    seen.push(attempt);
    if (attempt < succeedsAt) throw new Error("not yet");
  });
  const system = await startSystem(app);
  if (ackWaitMs > 2_900) await system.jsm.consumers.update("JOBS", "worker", { ack_wait: ackWaitMs * 1e6 });
  await system.publish("jobs.a", 1);
  const connect = async () => losing(await system.connect(), (subject) => subject.startsWith("$JS.ACK.JOBS."));
  const { consumers } = await system.invoke({ connect, budgetMs: 1_000 });
  const parkedAt = Date.now();
  expect(consumers[0]).toMatchObject({ pulled: 1, retried: 0, unconfirmed: 1 });
  expect(await stored(system)).toEqual({ jobs: 1, parked: 1, dead: 0 });
  const untilDue = () => sleep(parkedAt + dueMs - Date.now());
  return { system, seen, untilDue };
}

async function stored({ jsm }: System) {
  const [jobs, parked, dead] = await Promise.all(
    ["JOBS", "SORTIE_PARKED", "DEAD"].map(async (name) => (await jsm.streams.info(name)).state.messages),
  );
  return { jobs, parked, dead };
}

/** How many messages something is written down of. */
async function kept({ jsm }: System) {
  return (await jsm.streams.info("SORTIE_ATTEMPTS")).state.messages;
}

describe.concurrent("a parked message whose own acknowledgement was lost", () => {
  it("comes again before its copy is due, and is acknowledged unstarted", async ({ expect }) => {
    const { system, seen, untilDue } = await startParked(2);
    await using _ = system;
    await sleep(1_100);
    expect((await system.invoke()).consumers[0]).toMatchObject({ pulled: 1 });
    expect(seen).toEqual([1]);
    expect(await stored(system)).toEqual({ jobs: 0, parked: 1, dead: 0 });
    await untilDue();
    await system.settle();
    expect(seen).toEqual([1, 2]);
    expect(await stored(system)).toEqual({ jobs: 0, parked: 0, dead: 0 });
  });

  it.for([
    { ends: "succeeds", succeedsAt: 2, expected: [1, 2], letters: 0 },
    { ends: "fails for good", succeedsAt: 9, expected: [1, 2, 3], letters: 1 },
  ])(
    "comes again together with its copy, which $ends: each attempt is made once",
    async ({ succeedsAt, expected, letters }, { expect }) => {
      const { system, seen, untilDue } = await startParked(succeedsAt);
      await using _ = system;
      await untilDue();
      await system.settle();
      await sleep(1_100); // whatever was still outstanding would come again
      await system.settle();
      expect(seen).toEqual(expected);
      expect(await stored(system)).toEqual({ jobs: 0, parked: 0, dead: letters });
    },
  );

  it("is not parked once more where its copy is handled meanwhile", async ({ expect }) => {
    const { system, seen, untilDue } = await startParked(2);
    await using _ = system;
    await untilDue();
    const connect = async () => {
      const connection = await system.connect();
      const request: typeof connection.request = async (subject, payload, options) => {
        const isOfOrigin = subject.startsWith("sortie.attempts.") && !String(payload).includes('"open"');
        if (isOfOrigin) await expect.poll(() => kept(system)).toBe(0);
        return connection.request(subject, payload, options);
      };
      return altered(connection, { request });
    };
    await system.invoke({ connect });
    await system.settle();
    expect(seen).toEqual([1, 2]);
    expect(await stored(system)).toEqual({ jobs: 0, parked: 0, dead: 0 });
  });

  it.for([
    { ends: "succeeds", succeedsAt: 2, expected: [1, 2], letters: 0 },
    { ends: "fails for good", succeedsAt: 9, expected: [1, 2, 3], letters: 1 },
  ])("never comes again where its copy $ends before", async ({ succeedsAt, expected, letters }, { expect }) => {
    const { system, seen, untilDue } = await startParked(succeedsAt, { ackWaitMs: 60_000 });
    await using _ = system;
    await untilDue();
    await expect
      .poll(async () => (await system.invoke()) && stored(system))
      .toEqual({ jobs: 0, parked: 0, dead: letters });
    expect(seen).toEqual(expected);
  });
});

describe("a retry that cannot be parked", () => {
  it("stays with its consumer, and the report says why", async () => {
    const worker = defineConsumer(jobs, "worker", {
      deadLetter: "dead.jobs",
      ackWait: "1s",
      maxAckPending: 100,
      retry: { attempts: 3, backoff: list(["1m"]) },
    });
    const app = createApp({ streams: [jobs, dead] }).on(worker, () => {
      throw new Error("not yet");
    });
    await using system = await startSystem(app);
    const { config } = await system.jsm.streams.info("SORTIE_PARKED");
    await system.jsm.streams.update("SORTIE_PARKED", { ...config, max_msgs: 1, discard: DiscardPolicy.New });
    for (const n of [1, 2, 3]) await system.publish("jobs.a", n);
    const { consumers } = await system.invoke();
    expect(consumers).toMatchObject([{ retried: 3, error: expect.stringContaining("maximum messages exceeded") }]);
    expect((await system.jsm.consumers.info("JOBS", "worker")).num_ack_pending).toBe(2);
  });
});
