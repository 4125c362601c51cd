import{j as t,l as e}from"./chunk-5IVPSIAI.js";function n(){return t(e,{title:"new_run"})}export{n as default};
