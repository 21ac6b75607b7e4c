import { describe } from "vitest";
import { type ClientName, clients } from "../support/clients.ts";
import { programOf, type ServerVersion } from "../support/servers.ts";
import { startSystem } from "../support/system.ts";
import { agreeing } from "./agreeing.ts";
import { answering } from "./answering.ts";
import { batching } from "./batching.ts";
import { continuing } from "./continuing.ts";
import type { Start } from "./jobs.ts";
import { parking } from "./parking.ts";
import { provisioning } from "./provisioning.ts";
import { pulling } from "./pulling.ts";
import { settling } from "./settling.ts";
import { sweeping } from "./sweeping.ts";

/** What Sortie promises on one version of the server, over whichever of the clients that have what it asks for. */
export function contract(version: ServerVersion): void {
  describe.each(Object.keys(clients) as ClientName[])(`on nats-server ${version}, over %s:`, (client) => {
    const start: Start = (app) => startSystem(app, { binary: programOf(version), client });
    settling(start);
    batching(start);
    if (version === "newest" || client === "wsconnect") parking(start); // seconds, of which the client sees the same bytes
    if (client === "wsconnect") agreeing(start); // by requests that the other parts make over each client
    sweeping(start);
    pulling(start);
    answering(start);
    if (version === "newest" || client === "wsconnect") continuing(start); // seconds, as above
    provisioning(start, version, client);
  });
}
