import { createHmac } from "node:crypto";
import * as z from "zod";
import { invoke } from "../../src/consume/invocation.ts";
import { createHttp, type HttpOptions } from "../../src/http/http.ts";
import { createApp, defineConsumer, defineStream } from "../../src/index.ts";
import { disconnect } from "../../src/nats/connection.ts";
import { release } from "../../src/schedule/release.ts";
import type { System } from "../support/system.ts";

/** What everybody who is let in shows, and nobody may be told. */
export const secrets = {
  publish: "publish-token-0123456789",
  scoped: "notes-token-0123456789",
  schedules: "schedules-token-0123456789",
  run: "run-token-0123456789",
  admin: "admin-token-0123456789",
  cron: "cron:secret-0123456789",
  webhook: Buffer.from("a secret of twenty-four bytes or more").toString("base64"),
  webhookOther: Buffer.from("the secret of another subject, as each has one").toString("base64"),
  webhookBefore: Buffer.from("another secret, which is being replaced").toString("base64"),
};

export const tokens = {
  publish: `${secrets.publish} notes.*,orders.placed:${secrets.scoped}`,
  schedules: secrets.schedules,
  run: secrets.run,
  admin: secrets.admin,
  cron: secrets.cron,
  webhooks: `orders.placed:whsec_${secrets.webhook}\norders.placed:whsec_${secrets.webhookBefore} orders.failed:whsec_${secrets.webhookOther}`,
};

const Order = z.object({ orderId: z.string().min(1).max(40), cents: z.int().positive().default(1) });

const orders = defineStream("ORDERS", {
  subjects: { "orders.placed": Order, "orders.failed": Order, "notes.>": z.string().max(2_000) },
  duplicateWindow: "4m",
});
const images = defineStream("IMAGES", {
  subjects: { "images.*.resize": z.object({ url: z.url(), width: z.int().min(1).max(4096).optional() }) },
  retention: "workqueue",
  schedules: false,
});
const dead = defineStream("DEAD", { captures: ["dead.>"] });
export const handled: unknown[] = [];
const billing = defineConsumer(orders, "billing", { filter: "orders.placed", deadLetter: "notes.dead.billing" });
const resizer = defineConsumer(images, "same", { deadLetter: "dead.images" });
const failures = defineConsumer(orders, "same", { filter: "orders.failed", deadLetter: "dead.failures" });

/** An app with what there is to be got wrong: wildcards, dead letters within them, and two consumers of a name. */
export const app = createApp({ name: "surface", streams: [orders, images, dead] })
  .on(billing, ({ data }) => void handled.push(data))
  .on(resizer, ({ data }) => void handled.push(data))
  .on(failures, ({ data }) => void handled.push(data));

/** The surface of an app in this process. */
export function surfaceOf(system: Pick<System, "connect">, options: Partial<HttpOptions> = {}) {
  const connect = () => system.connect();
  return createHttp(app, {
    connect,
    tokens: () => tokens,
    run: (_c, bindings) =>
      invoke({ streams: app.streams, bindings, connect, deadline: Date.now() + 5_000, log: () => {} }),
    async release() {
      const connection = await connect();
      try {
        return await release(connection, app.streams, { deadline: Date.now() + 5_000 });
      } finally {
        disconnect(connection);
      }
    },
    ...options,
  });
}

/** The headers of a webhook, as its provider signs it. */
export function signed(
  body: string,
  { id = "msg_1", at = Date.now(), secret = secrets.webhook }: { id?: string; at?: number; secret?: string } = {},
): Record<string, string> {
  const timestamp = `${Math.floor(at / 1_000)}`;
  const signature = createHmac("sha256", Buffer.from(secret, "base64"))
    .update(`${id}.${timestamp}.${body}`)
    .digest("base64");
  return { "webhook-id": id, "webhook-timestamp": timestamp, "webhook-signature": `v1,${signature}` };
}
