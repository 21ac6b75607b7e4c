import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { getRequestListener } from "@hono/node-server";
import { serve } from "sortie/fetch";
import { app } from "../../functions/app.ts";

// The sample system under a host that knows nothing but fetch.
const { fetch } = serve(app);
const server = createServer(getRequestListener((request) => fetch(request)));
server.listen(0, "127.0.0.1", () => {
  const { port } = server.address() as AddressInfo;
  console.log(JSON.stringify({ event: "listening", url: `http://127.0.0.1:${port}` }));
});
