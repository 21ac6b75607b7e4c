import { once } from "node:events";
import { connect, disconnect } from "../../src/nats/connection.ts";
import { invokeOn, keeping } from "../sortie.ts";
import { app, handler } from "./app.ts";

/** What one of those that drain a backlog together had of it. */
export interface Drained {
  readonly acked: number;
}

const [url = "", ms = ""] = process.argv.slice(2);
handler.ms = Number(ms);
const connection = await connect({ url }, 10_000);
process.send?.("here");
await once(process, "message");
let acked = 0;
for (let pulled = 1; pulled > 0; ) {
  const one = await invokeOn({ app }, { ...keeping(connection), deadline: Date.now() + 10 * 60_000 });
  acked += one.acked;
  pulled = one.pulled; // a busy server may have let the last pull pass unserved
}
await new Promise((resolve) => process.send?.({ acked } satisfies Drained, resolve));
disconnect(connection);
process.exit();
