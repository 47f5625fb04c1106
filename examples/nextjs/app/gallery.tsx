import { getImageProps } from "next/image";
import { imgproxyLoader } from "@/lib/imgproxy";
import { photos } from "@/lib/photos";
import { LoadTimes } from "./load-times";

/** A server component: what reaches the browser is the <img>, with its signed URLs. */
export function Gallery({ route, base }: { route: string; base: string }) {
  const loader = imgproxyLoader(base);
  return (
    <main>
      <h1>Six photos, {route}</h1>
      <div className="photos">
        {photos.map((photo) => {
          const { props } = getImageProps({ ...photo, loader, sizes: "(min-width: 60rem) 20rem, 50vw" });
          return <img key={photo.src} {...props} />;
        })}
      </div>
      <LoadTimes route={route} />
      <nav>
        {/* Whole pages, not client-side navigation, so that the photos load anew. */}
        <a href="/uncached">without Afterimage</a> <a href="/">with Afterimage</a>
      </nav>
    </main>
  );
}
