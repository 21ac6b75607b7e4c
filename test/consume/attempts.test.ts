import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, describe, expect, it } from "vitest";
import * as z from "zod";
import { createApp, defineConsumer, defineStream, fixed, type RetryPolicy } from "../../src/index.ts";
import type { Connection } from "../../src/nats/connection.ts";
import { crashPoints } from "../../src/nats/within.ts";
import { altered } from "../support/connections.ts";
import { asFunction, functionDenied } from "../support/logins.ts";
import { type System, startSystem } from "../support/system.ts";

const jobs = defineStream("JOBS", { subjects: { "jobs.a": z.object({ n: z.number() }) }, retention: "workqueue" });
const dead = defineStream("DEAD", { captures: ["dead.>"] });

let system: System;
afterEach(async () => {
  delete crashPoints.reached;
  await system[Symbol.asyncDispose]();
});

async function start(retry: RetryPolicy, handler: (start: { attempt: number }) => unknown) {
  const worker = defineConsumer(jobs, "worker", { deadLetter: "dead.jobs", ackWait: "1s", retry });
  system = await startSystem(createApp({ streams: [jobs, dead] }).on(worker, handler));
  await system.publish("jobs.a", { n: 1 });
}

/** Over which the server does not hear that a message is being worked on. */
async function unheard(): Promise<Connection> {
  const connection = await system.connect();
  return altered(connection, {
    publish: (subject, payload, ...rest) => {
      if (payload !== "+WPI") connection.publish(subject, payload, ...rest);
    },
  });
}

/** As if a function had died of the message, or of a neighbour. */
async function dieOnce(): Promise<void> {
  await (await system.js.consumers.get("JOBS", "worker")).next({ expires: 5_000 });
  await sleep(1_100); // the ack-wait
}

const lettersIn = async () => (await system.jsm.streams.info("DEAD")).state.messages;

/** Two invocations have a message at the same time, and fail one after the other; a third one has it last. */
async function startTwice(attempts: number, { suspect = false } = {}) {
  const seen: number[] = [];
  const gates = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  await start({ attempts, backoff: fixed(10) }, async ({ attempt }) => {
    const nth = seen.push(attempt) - 1;
    await gates[nth]?.promise;
    if (nth < 2) throw new Error(`start ${nth + 1}`);
  });
  if (suspect) await dieOnce();
  const first = system.invoke({ connect: unheard, budgetMs: 20_000 });
  await expect.poll(() => seen.length).toBe(1);
  await sleep(1_100); // the ack-wait
  const second = system.invoke({ budgetMs: 20_000 });
  await expect.poll(() => seen.length).toBe(2);
  gates[0]?.resolve();
  await first;
  gates[1]?.resolve();
  await second;
  await system.settle();
  return seen;
}

describe("a message that two invocations start, as the first one's lease was lost", () => {
  it("has each start counted once", async () => {
    expect(await startTwice(9)).toEqual([1, 1, 3]);
    expect(await lettersIn()).toBe(0);
  });

  it("is not dead-lettered after two starts of three", async () => {
    expect(await startTwice(3)).toEqual([1, 1, 3]);
    expect(await lettersIn()).toBe(0);
  });
});

describe("a suspect that is taken for the death of its function while that is only unheard of", () => {
  it("has its start counted once, for what it really came to", async () => {
    expect(await startTwice(3, { suspect: true })).toEqual([1, 2, 3]);
    expect(await lettersIn()).toBe(0);
  });
});

describe("a suspect whose start was written down and never made", () => {
  it("is charged nothing where the server's answer was lost", async () => {
    const seen: number[] = [];
    await start({ attempts: 1, backoff: fixed(10) }, ({ attempt }) => seen.push(attempt));
    await dieOnce();
    let lost = false;
    const connect = async () => {
      const connection = await system.connect();
      return altered(connection, {
        request: (subject, ...rest) => {
          const answer = connection.request(subject, ...rest);
          if (!subject.startsWith("sortie.attempts.") || lost) return answer;
          lost = true;
          answer.catch(() => {});
          return new Promise(() => {}); // stored, and never heard of
        },
      });
    };
    await system.invoke({ connect, budgetMs: 2_000 });
    expect(lost).toBe(true);
    await system.settle();
    expect(seen).toEqual([1]);
    expect(await lettersIn()).toBe(0);
  });

  it("is charged nothing where the function was frozen in between, past the ack-wait", async () => {
    const seen: number[] = [];
    await start({ attempts: 1, backoff: fixed(10) }, ({ attempt }) => seen.push(attempt));
    await dieOnce();
    let frozen = false;
    crashPoints.reached = (point, phase) => {
      if (frozen || phase !== "after" || point !== "writing the attempts at a message") return;
      frozen = true;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1_300);
    };
    await system.invoke();
    expect(frozen).toBe(true);
    await system.settle();
    expect(seen).toEqual([1]);
    expect(await lettersIn()).toBe(0);
  });
});

describe("a login that may not acknowledge", () => {
  it("charges no message for that: each is handled again, and the report names the permission", async () => {
    const config = functionDenied("publish", "$JS.ACK.>");
    const worker = defineConsumer(jobs, "worker", {
      deadLetter: "dead.jobs",
      ackWait: "1s",
      retry: { attempts: 2, backoff: fixed(10) },
    });
    const attempts: number[] = [];
    const app = createApp({ streams: [jobs, dead] }).on(worker, ({ attempt }) => void attempts.push(attempt));
    system = await startSystem(app, { config });
    await system.publish("jobs.a", { n: 1 });
    for (let n = 0; n < 4; n++) {
      const { consumers } = await system.invoke({ connect: asFunction(system.server), budgetMs: 2_000 });
      expect(consumers).toMatchObject([{ unconfirmed: 1, error: expect.stringMatching(/permissions.*\$JS\.ACK/i) }]);
      await sleep(1_100); // the ack-wait
    }
    expect((await system.invoke()).consumers).toMatchObject([{ acked: 1, deadLettered: 0 }]);
    expect(attempts).toEqual([1, 1, 1, 1, 1]);
  });

  it("or to remove what was written of attempts, is told of that", async () => {
    const config = functionDenied("publish", "$JS.API.STREAM.MSG.DELETE.>");
    const retry = { attempts: 3, backoff: fixed(10) };
    const worker = defineConsumer(jobs, "worker", { deadLetter: "dead.jobs", ackWait: "1s", retry });
    const app = createApp({ streams: [jobs, dead] }).on(worker, ({ attempt }) => {
      if (attempt === 1) throw new Error("once");
    });
    system = await startSystem(app, { config });
    await system.publish("jobs.a", { n: 1 });
    const { consumers } = await system.invoke({ connect: asFunction(system.server), linger: "500ms" });
    expect(consumers).toMatchObject([{ acked: 1, error: expect.stringMatching(/MSG\.DELETE\.SORTIE_ATTEMPTS/) }]);
  });
});

describe("starts in place", () => {
  it.each([true, false])(
    "are counted once where the lease is lost meanwhile, to one that takes it for a death: %s",
    async (once) => {
      let starts = 0;
      const rules = [{ on: Error, do: { inPlace: once ? 1 : 2, delay: 0 } }] as const;
      await start({ attempts: 4, backoff: fixed(100), rules }, async () => {
        starts += 1;
        const error = new Error(`start ${starts}`);
        if (starts <= 2) await sleep(starts === 1 ? 1_700 : 1_500);
        throw error;
      });
      (await (await system.js.consumers.get("JOBS", "worker")).next({ expires: 5_000 }))?.nak(); // now it is a suspect
      const first = system.invoke({ connect: unheard, budgetMs: 8_000 });
      await sleep(300);
      const [one] = await Promise.all([first, system.invoke({ budgetMs: 8_000, linger: "3s" })]);
      await system.settle();
      expect(one.consumers[0]).not.toHaveProperty("error"); // that another one has it is nothing to see to
      const letter = await system.jsm.streams.getMessage("DEAD", { seq: 1 });
      expect(letter?.header.get("Sortie-Reason")).toBe("attempts-exhausted");
      expect(starts).toBeGreaterThanOrEqual(4);
      expect(letter?.header.values("Sortie-Attempt").filter((line) => /not heard of/.test(line))).toEqual([]);
    },
  );

  it("are written down, so that a function that dies in one does not forget those before", async () => {
    const rules = [{ on: Error, do: { inPlace: 5 } }] as const;
    const seen: number[] = [];
    await start({ attempts: 4, backoff: fixed(10), rules }, ({ attempt }) => {
      seen.push(attempt);
      if (attempt === 3 && seen.length === 3) return new Promise(() => {}); // its function dies here
      throw new Error("no");
    });
    const cut = await system.connect();
    const dying = system.invoke({ connect: async () => cut, budgetMs: 3_000 });
    await expect.poll(() => seen.length).toBe(3);
    await Promise.all([cut.close(), dying]);
    await sleep(1_100);
    await system.settle();
    expect(seen.slice(0, 3)).toEqual([1, 2, 3]);
    expect(seen.slice(3)[0]).toBeGreaterThanOrEqual(3);
    expect(seen.length).toBeLessThanOrEqual(5);
    expect(await lettersIn()).toBe(1);
  });
});

describe("an error that throws when it is looked at", () => {
  const errors: [string, () => unknown][] = [
    [
      "headers that throw",
      () => ({
        status: 503,
        headers: {
          get() {
            throw new Error("no such header");
          },
        },
      }),
    ],
    [
      "a proxy that was revoked",
      () => {
        const { proxy, revoke } = Proxy.revocable({}, {});
        revoke();
        return proxy;
      },
    ],
  ];

  it.each(errors.flatMap(([name, make]) => [false, true].map((later) => [name, later, make] as const)))(
    "is a failure like any other: %s, thrown later: %s",
    async (_, later, make) => {
      await start({ attempts: 2, backoff: fixed(10) }, async () => {
        if (later) await sleep(1);
        throw make();
      });
      const { consumers } = await system.invoke({ budgetMs: 4_000 });
      expect(consumers[0]?.unconfirmed).toBe(0);
      await system.settle();
      const letter = await system.jsm.streams.getMessage("DEAD", { seq: 1 });
      expect(letter?.header.get("Sortie-Reason")).toBe("attempts-exhausted");
      expect(letter?.header.get("Sortie-Attempts")).toBe("2");
    },
  );

  it("is so for a handler that throws at once as well", async () => {
    await start({ attempts: 2, backoff: fixed(10) }, () => {
      throw errors[0]?.[1]();
    });
    await system.settle();
    expect(await lettersIn()).toBe(1);
  });
});
