import { jetstream } from "@nats-io/jetstream";
import { wsconnect } from "@nats-io/nats-core";
import { fetchAndAck, fetchAndAckAck } from "../bare.ts";

/** The bare client in a Worker: it handles as many messages as wait when it comes. */
export default {
  async scheduled(_controller: unknown, { NATS_URL, CONFIRMED }: { NATS_URL: string; CONFIRMED: boolean }) {
    const nc = await wsconnect({ servers: NATS_URL });
    const consumer = await jetstream(nc).consumers.get("BENCH_WORKERD", "worker");
    const { num_pending } = await consumer.info(true); // what the look-up brought
    await (CONFIRMED ? fetchAndAckAck : fetchAndAck)(nc, consumer, 100, num_pending);
    await nc.close();
  },
};
