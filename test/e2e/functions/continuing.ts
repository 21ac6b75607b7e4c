import { selfInvoke, serve } from "sortie/aws-lambda";
import { app } from "../workers/app.ts";

export const { pull } = serve(app, { onMore: selfInvoke() });
