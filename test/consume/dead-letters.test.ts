import { once } from "node:events";
import { createConnection } from "node:net";
import { AckPolicy } from "@nats-io/jetstream";
import { headers } from "@nats-io/nats-core";
import { afterEach, describe, expect, it } from "vitest";
import * as z from "zod";
import { createApp, defineConsumer, defineStream, fixed, NonRetriableError } from "../../src/index.ts";
import { apply } from "../../src/provision/apply.ts";
import { type System, startSystem } from "../support/system.ts";

const jobs = defineStream("JOBS", { subjects: { "jobs.a": z.object({ n: z.number() }) } });
const dead = defineStream("DEAD", { captures: ["dead.>"] });

let system: System;
afterEach(() => system[Symbol.asyncDispose]());

const letterAt = (seq: number) => system.jsm.streams.getMessage("DEAD", { seq });

describe("a payload as large as the server's max_payload", () => {
  const maxPayload = 1024 * 1024;

  it.each([0, 11, 12, 100, 600])("less %i bytes is stored untouched, and its story with it", async (less) => {
    const worker = defineConsumer(jobs, "worker", { deadLetter: "dead.jobs" });
    system = await startSystem(createApp({ streams: [jobs, dead] }).on(worker, () => {}));
    const payload = new Uint8Array(maxPayload - less).fill(120);
    await system.publish("jobs.a", payload);
    expect((await system.invoke()).consumers).toMatchObject([{ deadLettered: 1, retried: 0 }]);
    const first = await letterAt(1);
    expect(first?.data).toEqual(payload);
    const { messages } = (await system.jsm.streams.info("DEAD")).state;
    const story = messages === 1 ? first : await letterAt(2);
    expect(story?.header.get("Sortie-Reason")).toBe("undecodable");
    expect(story?.header.get("Sortie-Payload-Sequence")).toBe(messages === 1 ? "" : "1");
    expect(messages).toBe(less < 600 ? 2 : 1);
  });
});

describe("headers that a client of someone else's has sent", () => {
  /** Publishes a message with a block of headers as it is. */
  async function publishRaw(block: string): Promise<void> {
    const { hostname, port } = new URL(system.server.tcpUrl.replace("nats:", "http:"));
    const socket = createConnection({ host: hostname, port: Number(port) });
    const hdr = Buffer.from(`NATS/1.0\r\n${block}\r\n\r\n`, "latin1");
    const body = Buffer.from(`{"n":1}`);
    const pub = `HPUB jobs.a ${hdr.length} ${hdr.length + body.length}\r\n`;
    socket.write(
      Buffer.concat([
        Buffer.from(`CONNECT {"verbose":false,"headers":true}\r\n${pub}`),
        hdr,
        body,
        Buffer.from("\r\nPING\r\n"),
      ]),
    );
    for (let said = ""; !said.includes("PONG"); ) [said] = [said + (await once(socket, "data"))[0]];
    socket.destroy();
  }

  it("and that no client could send again are cleaned, or left out, where the server gave the message up", async () => {
    const worker = defineConsumer(jobs, "worker", {
      managed: false,
      deadLetter: "dead.jobs",
      ackWait: "1s",
      retry: { attempts: 1, backoff: fixed(10) },
    });
    const app = createApp({ streams: [jobs, dead] }).on(worker, () => {
      throw new Error("always");
    });
    system = await startSystem(createApp({ streams: [jobs, dead] }));
    const limits = { ack_policy: AckPolicy.Explicit, ack_wait: 1e9, max_deliver: 1 };
    await system.jsm.consumers.add("JOBS", { durable_name: "worker", ...limits });
    const connection = await system.connect();
    await apply(connection, { streams: app.streams, consumers: [worker] });
    await connection.close();
    const blocks = ["X-A: a\nb", "X-A: a\rb", "X A: a", "X-\u00e9: a", "X-A: caf\u00e9", "X-A: fine"];
    for (const block of blocks) await publishRaw(block);
    const pulled = await (await system.js.consumers.get("JOBS", "worker")).fetch({ max_messages: blocks.length });
    for await (const _ of pulled); // and not heard of again: the server gives them up
    const count = async () => (await system.jsm.streams.info("DEAD")).state.messages;
    const invoke = () => system.invoke({ bindings: app.bindings });
    await expect.poll(async () => (await invoke()) && count(), { timeout: 15_000, interval: 200 }).toBe(blocks.length);
    for (let seq = 1; seq <= blocks.length; seq++) {
      const header = (await letterAt(seq))?.header;
      expect(header?.get("X-A") ?? "").toMatch(/^[\x20-\x7e]*$/);
      expect(header?.get("Sortie-Attempts")).toBe("1");
    }
  });
});

describe("a dead letter", () => {
  it("has the message's correlation id, and headers of its own that come more than once", async () => {
    const worker = defineConsumer(jobs, "worker", { deadLetter: "dead.jobs" });
    const app = createApp({ streams: [jobs, dead] }).on(worker, () => {
      throw new NonRetriableError("never");
    });
    system = await startSystem(app);
    const hdrs = headers();
    hdrs.set("Sortie-Correlation-Id", "order-1");
    hdrs.set("Sortie-Reason", "mine");
    for (const value of ["1", "2"]) hdrs.append("X-A", value);
    await system.js.publish("jobs.a", JSON.stringify({ n: 1 }), { headers: hdrs });
    await system.invoke();
    const header = (await letterAt(1))?.header;
    expect(header?.get("Sortie-Correlation-Id")).toBe("order-1");
    expect(header?.values("Sortie-Reason")).toEqual(["non-retriable"]);
    expect(header?.values("X-A")).toEqual(["1", "2"]);
  });
});

describe("a message that is to be dead-lettered, which is refused", () => {
  it("keeps its reason, and is not started again", async () => {
    const worker = defineConsumer(jobs, "worker", {
      deadLetter: "dead.jobs",
      retry: { attempts: 5, backoff: fixed(10) },
    });
    let starts = 0;
    const app = createApp({ streams: [jobs, dead] }).on(worker, () => {
      starts += 1;
      if (starts === 1) throw new NonRetriableError("card declined"); // a second start would succeed
    });
    system = await startSystem(app);
    await system.jsm.streams.delete("DEAD");
    await system.publish("jobs.a", { n: 1 });
    expect((await system.invoke({ budgetMs: 2_000 })).consumers[0]?.retried).toBeGreaterThan(0);
    await system.jsm.streams.add({ name: "DEAD", subjects: ["dead.>"] });
    await system.settle();
    expect(starts).toBe(1);
    const letter = await letterAt(1);
    expect(letter?.header.get("Sortie-Reason")).toBe("non-retriable");
    expect(letter?.header.get("Sortie-Error")).toBe("NonRetriableError: card declined");
  });
});
