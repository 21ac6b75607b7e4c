import { connect as connectTcp } from "@nats-io/transport-node";
import { connect as connectLegacy } from "nats.ws";
import { describe, expect, it } from "vitest";
import * as z from "zod";
import { createApp, defineConsumer, defineStream, fixed, NonRetriableError } from "../../src/index.ts";
import { type Connection, connect } from "../../src/nats/connection.ts";
import type { NatsServer } from "../../src/testing/nats-server.ts";
import { startSystem } from "../support/system.ts";

// The core asks for a slice of a connection: each client that has it must do.
const clients: Record<string, (server: NatsServer, ms: number) => Promise<Connection>> = {
  wsconnect: ({ url }, ms) => connect({ url }, ms),
  "nats.ws": async ({ url }, timeout) => (await connectLegacy({ servers: url, timeout })) as unknown as Connection,
  "transport-node": ({ tcpUrl }, timeout) =>
    connectTcp({ servers: tcpUrl.replace("nats://", ""), timeout, reconnect: false }),
};

const jobs = defineStream("JOBS", {
  subjects: { "jobs.do": z.object({ n: z.number() }), "jobs.done": z.object({ n: z.number() }) },
});
const dead = defineStream("DEAD", { captures: ["dead.>"] });
const worker = defineConsumer(jobs, "worker", {
  filter: "jobs.do",
  deadLetter: "dead.jobs",
  retry: { attempts: 2, backoff: fixed(20) },
});
const missing = defineConsumer(jobs, "missing", { filter: "jobs.done", deadLetter: "dead.jobs" });

describe.each(Object.keys(clients))("an invocation over %s", (name) => {
  it("pulls, publishes, schedules, retries, dead-letters and tells what is missing", async () => {
    const app = createApp({ streams: [jobs, dead] })
      .on(worker, async ({ data, attempt }, { publish, schedule }) => {
        if (data.n === 1) throw new NonRetriableError("one");
        if (data.n === 2 && attempt === 1) throw new Error("two");
        await publish("jobs.done", data);
        if (data.n === 3) await schedule("jobs.done", { n: 33 }, { in: "1h", id: "three" });
      })
      .on(missing, () => {});
    await using system = await startSystem(app);
    await system.jsm.consumers.delete("JOBS", "missing");
    const connectWith = clients[name] as (server: NatsServer, ms: number) => Promise<Connection>;
    const invoke = () => system.invoke({ connect: (ms) => connectWith(system.server, ms) });
    for (let n = 0; n < 50; n++) await system.publish("jobs.do", { n });

    const { consumers } = await invoke();
    expect(consumers[0]).toMatchObject({ retried: 1, deadLettered: 1, unconfirmed: 0 });
    expect(consumers[1]?.error).toMatch(/npx sortie apply/);
    let acked = consumers[0]?.acked ?? 0;
    await expect.poll(async () => (acked += (await invoke()).consumers[0]?.acked ?? 0)).toBe(49);

    const { subjects } = (await system.jsm.streams.info("JOBS", { subjects_filter: ">" })).state;
    expect(subjects).toEqual({ "jobs.do": 50, "jobs.done": 49, "sortie.schedule.JOBS.three": 1 });
    expect((await system.jsm.streams.info("DEAD")).state.messages).toBe(1);
    expect(await system.jsm.consumers.info("JOBS", "worker")).toMatchObject({ num_pending: 0, num_ack_pending: 0 });
  });
});
