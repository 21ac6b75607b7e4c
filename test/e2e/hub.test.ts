import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type LocalWorker, startWorker } from "../../scripts/worker.ts";
import { bundleWorker } from "../support/bundle.ts";
import { type Monitoring, monitoring } from "../support/monitoring.ts";
import { observe, type System, startSystem } from "../support/system.ts";
import { app } from "./workers/hub.ts";

// A Worker whose connection is a Durable Object's, in real workerd.
let monitor: Monitoring;
let system: System;
let worker: LocalWorker;
const logs: Record<string, unknown>[] = [];

beforeAll(async () => {
  monitor = await monitoring();
  const [started, script] = await Promise.all([startSystem(app, monitor), bundleWorker("hub.ts")]);
  system = started;
  worker = await startWorker({
    script,
    bindings: { NATS_URL: system.server.url, SORTIE_PUBLISH_TOKEN: "s3cret" },
    durableObjects: { HUB: "Hub", NARROW: "Narrow" },
    onLog: (line) => logs.push(JSON.parse(line)),
  });
});
afterAll(async () => {
  await worker[Symbol.asyncDispose]();
  await system[Symbol.asyncDispose]();
});

interface Answer {
  readonly status: number;
  readonly retryAfter: string | null;
  readonly answer: { readonly sequence?: number; readonly type?: string };
}

async function post(path: string, payload: unknown, headers: Record<string, string> = {}): Promise<Answer> {
  const response = await fetch(new URL(`publish/${path}`, worker.url), {
    method: "POST",
    headers: { Authorization: "Bearer s3cret", "Content-Type": "application/json", ...headers },
    body: JSON.stringify(payload),
  });
  const answer = (await response.json()) as Answer["answer"];
  return { status: response.status, retryAfter: response.headers.get("Retry-After"), answer };
}

const opened = (name: string) => monitor.connections("all", name);
const many = (count: number) => Array.from({ length: count }, (_, n) => n);
const handled = () => logs.filter(({ event }) => event === "done").map(({ n }) => n);

/** What is stored on a subject, by its sequence. */
async function stored(subject: string, { jsm }: Pick<System, "jsm"> = system): Promise<Map<number, unknown>> {
  const found = new Map<number, unknown>();
  for (let seq = 1; ; ) {
    const next = { seq, next_by_subj: subject } as { seq: number }; // the client's types do not know it
    const message = await jsm.streams.getMessage("JOBS", next);
    if (!message) return found;
    found.set(message.seq, message.json());
    seq = message.seq + 1;
  }
}

describe("a hub", () => {
  it("publishes for all over one connection, and each is told of its own message", async () => {
    const answers = await Promise.all(many(200).map((n) => post("jobs.kept", n)));
    expect(answers.filter(({ status }) => status !== 202)).toEqual([]);
    expect(await stored("jobs.kept")).toEqual(new Map(answers.map(({ answer }, n) => [answer.sequence, n])));
    expect(await opened("sortie-hub")).toHaveLength(1);
  });

  it("carries consumers and schedules, also of invocations that overlap", async () => {
    const before = (await opened("sortie")).length;
    await Promise.all([...many(50).map((n) => post("jobs.do", n)), post("jobs.do?delay=1s", 50)]);
    await Promise.all(many(3).map(() => worker.fire("* * * * *")));
    await worker.fire("* * * * *"); // what was released meanwhile
    await expect.poll(() => handled().toSorted()).toEqual(many(51).toSorted());
    expect((await opened("sortie")).length).toBe(before);
    expect(await opened("sortie-hub")).toHaveLength(1);
  });

  it("ends the subscriptions of who left without a word", async () => {
    await fetch(new URL("leave", worker.url));
    await expect.poll(() => monitor.subscriptions("sortie-hub")).toBe(1); // for the answers to its requests
  });

  it("refuses what it has no room for, and says when to come again", async () => {
    const answers = await Promise.all(many(60).map((n) => post("jobs.kept", n, { "X-Narrow": "yes" })));
    const refused = answers.filter(({ status }) => status !== 202);
    expect(refused.length).toBeGreaterThan(0);
    expect(refused.length).toBeLessThan(60);
    for (const { status, retryAfter, answer } of refused)
      expect({ status, retryAfter, ...answer }).toMatchObject({
        status: 503,
        retryAfter: expect.stringMatching(/^[12]$/),
        type: "urn:sortie:problem:overloaded",
      });
    await expect.poll(async () => (await monitor.connections("open", "sortie-hub")).length).toBe(1); // an idle one is closed
  });

  it("evicted, and NATS restarted, under load: what is answered with 202 is stored once, and nothing else is said to be", async () => {
    const answers: (Answer & { n: number })[] = [];
    let isOver = false;
    let next = 1_000;
    const publishing = many(8).map(async () => {
      while (!isOver) {
        const n = next++;
        answers.push({ ...(await post("jobs.kept", n, { "Idempotency-Key": `${n}` })), n });
      }
    });
    const some = async (status: number) => {
      const from = answers.length;
      await expect.poll(() => answers.slice(from).filter((one) => one.status === status).length).toBeGreaterThan(20);
    };
    await some(202);
    await fetch(new URL("evict", worker.url));
    await some(202);
    await system.server.kill("SIGKILL");
    await system.server.start();
    await some(202);
    await fetch(new URL("evict", worker.url));
    await some(202);
    isOver = true;
    await Promise.all(publishing);
    expect((await opened("sortie-hub")).length).toBeGreaterThanOrEqual(2); // that the server has seen since it is back
    await using look = await observe(system.server);
    const found = await stored("jobs.kept", look);
    const load = [...found].filter(([, n]) => Number(n) >= 1_000);
    expect(new Set(load.map(([, n]) => n)).size).toBe(load.length);
    const acknowledged = answers.filter(({ status }) => status === 202);
    expect(acknowledged.filter(({ n, answer }) => found.get(answer.sequence ?? 0) !== n)).toEqual([]);
    const others = answers.filter(({ status }) => status !== 202);
    expect(others.filter(({ status, retryAfter }) => status !== 503 || retryAfter === null)).toEqual([]);
  });

  it("answers with 503 while NATS is away, and goes on when it is back", async () => {
    await system.server.kill("SIGKILL");
    const { status, answer } = await post("jobs.kept", 1);
    expect({ status, type: answer.type }).toEqual({ status: 503, type: "urn:sortie:problem:connection-failed" });
    expect((await worker.fire("* * * * *")).outcome).toBe("exception");
    await system.server.start();
    await expect.poll(async () => (await post("jobs.kept", 2)).status).toBe(202);
  });
});
